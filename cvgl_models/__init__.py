"""Train and evaluate cross-view geo-localization models on built shards."""
