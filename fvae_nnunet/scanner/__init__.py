"""What another scanner would have made of a CT: less dose, another kernel."""
