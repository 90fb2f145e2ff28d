"""Where models come from: each source fetches one into a folder and checks it."""
