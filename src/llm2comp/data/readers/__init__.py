"""Readers turn the files of packaged sources into rows: one function per source."""
