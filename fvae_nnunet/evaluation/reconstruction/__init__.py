"""What reconstruction changed in CT images."""
