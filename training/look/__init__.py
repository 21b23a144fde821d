"""What loads is looked at: what a data set holds, what of it is surely wrong, and a picture sheet of it."""
