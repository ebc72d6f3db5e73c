"""The adapter for A1111, Forge, Forge Classic and reForge, which `scripts/saemnesia.py` loads.

settings -> files -> job -> eraser -> infotext, and settings -> looking -> heat for the maps; `panel`, `routes` and
`axes` are where settings come from. Only `panel`, `routes`, `host` and the script know the host's modules. ComfyUI's
registry archive leaves this folder out.
"""
