"""The HTTP side: aiohttp in its own thread, and one bridge to trio."""
