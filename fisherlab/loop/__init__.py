"""What every training is made of: samples and their order, rates, losses, and the steps themselves."""
