"""A layer's inputs a and output gradients g, and what is made of V = Σ_t g_t a_tᵀ without forming V."""
