"""Who may write a product's phrases, behind one small interface."""
