"""What every part uses: files, hardware, progress bars, tables."""
