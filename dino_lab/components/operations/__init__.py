"""Operations on crops, each a Kornia augmentation; an augmentation is a list of them."""
