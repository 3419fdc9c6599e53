"""How good generated CT are: distances of features, agreement with texts and masks, and copies of training cases."""
