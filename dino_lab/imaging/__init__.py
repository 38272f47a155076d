"""Image files decoded to pixels, and small pictures of tensors."""
