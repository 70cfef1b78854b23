"""The command line: one function per command, each of which calls the API and prints."""
