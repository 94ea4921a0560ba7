"""Models over named columns: scikit-learn, XGBoost, LightGBM."""
