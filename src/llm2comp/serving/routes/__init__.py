"""The routes of the server, each file with the bodies that it reads and writes."""
