"""The name of each stage's encoder folder within a run."""

FOLDERS = {
    "pretext": "1-pretext",
    "unsupervised": "2-unsupervised",
    "supervised": "3-supervised",
}
