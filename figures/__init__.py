"""The paper's figures and tables, made again: what was measured here beside what is printed there.

The paper is Liu, Li, Gao and Wang, A Layer-Wise Natural Gradient Optimizer for Training Deep Neural Networks,
NeurIPS 2024. `catalogue` knows the name of each and what makes it: a module of its own, or `trainings`.
"""
