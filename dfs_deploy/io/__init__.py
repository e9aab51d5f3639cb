"""Reading and writing of files, each kind by one hardened way in."""
