"""Image files made into pixels, and small pictures made of tensors."""
