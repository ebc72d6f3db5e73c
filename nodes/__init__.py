"""ComfyUI nodes: one module a thing a user does; each lists its nodes in NODES."""
