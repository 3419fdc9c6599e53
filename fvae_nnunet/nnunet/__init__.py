"""What we know of nnU-Net: its folders and files, labels, folds, trained models and prediction."""
