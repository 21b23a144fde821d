"""Known data sets: fetched, converted from their own formats to COCO's, and named."""
