"""From a dataset to batches, at the speed of the JPEG decoder; `cvgl_models.batches` is its front."""
