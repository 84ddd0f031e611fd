"""The IDR model (Yariv et al. 2020): implicit network, rendering network, differentiable intersection, losses."""
