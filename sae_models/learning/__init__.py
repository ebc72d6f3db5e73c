"""From pictures to a file: what a model does with and without a concept's words, and the neurons fitted to that.

`prompts` says what is painted, `maps` what was seen meanwhile; `training` (an SAE), `fitting` (a concept by least
squares) and `finding` (neurons that are there) make rows of it, `scoring` and `report` judge them. Nothing here is
needed to paint.
"""
