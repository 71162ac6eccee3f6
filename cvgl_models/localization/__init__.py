"""Fine localization: where inside a reference a query was taken, in metres, and which way it looks, in degrees.

`pose` (what a system returns), `decode` (score map to metres), `metrics`, `predicting` (a model over many pairs),
`sampling` (batches whose references have nothing in common), `evaluation`, `page`, `refining` (second stage of
`cvgl_models.serving`).
"""
