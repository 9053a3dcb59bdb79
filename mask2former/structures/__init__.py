"""What the other packages work on: masks, their run lengths, classes and colors."""
