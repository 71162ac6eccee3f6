"""Train and evaluate cross-view geo-localization models on built datasets.

The main entry points are `cvgl_models.recipe.load_recipe`, `cvgl_models.training.train`,
`cvgl_models.evaluation.evaluate`, `cvgl_models.sheets.contact_sheet` and `cvgl_models.serving.locate`.
"""
