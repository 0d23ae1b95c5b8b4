"""What is trained on: model, data, objective, augmentation and the test of it."""
