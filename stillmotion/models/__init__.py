"""Networks: every one takes (B, T, C, H, W) and returns a dict with `logits` and `embedding`."""
