"""From pictures to a file: what a model does with and without a concept's words, and the neurons fitted to that.

`lesson` and `prompts` say what is painted, `painting` what a host does for it, `collect` and `maps` what was seen
meanwhile; `training` (an SAE), `fitting` (a concept by least squares) and `finding` (neurons that are there) make rows
of it, `effects`, `scoring` and `report` judge them. `search` goes all that way for a concept. Nothing here is needed to
paint.
"""
