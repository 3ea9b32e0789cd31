"""Data for reward models and judges: preference records, synthesis, voting, and grain pipelines."""
