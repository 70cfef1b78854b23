"""Evaluation on files of one's own: pairs, scored pairs, and folders in the layout of BEIR."""
