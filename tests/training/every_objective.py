"""The objectives of stage 1, and what each of them needs in a recipe."""

OBJECTIVES = {
    "distillation": [],
    "continuation": [],
    "reconstruction": [],
    "prefix_reconstruction": [],
    "mntp": ["pretext.attention=bidirectional"],
    "embedding_prediction": [],
}
