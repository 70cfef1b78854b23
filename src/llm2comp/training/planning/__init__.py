"""What a run will need: tokens, operations, memory, disk and time, before it begins."""
