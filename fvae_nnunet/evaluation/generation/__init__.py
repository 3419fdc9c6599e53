"""Quality of generated CT: feature distances, agreement with texts and masks, and copies of training cases."""
