"""Models: each loaded one lives in a child process, behind one port."""
