"""Every parameter that each library's users can pass, and what happens to it here.

A test compares these tables with the libraries' own signatures: a release with a new parameter
fails the test until somebody records here what the parameter does to a prediction.

applied   it is in the file, or the original is called with its default
asked     no file holds it: the user gives it (``ConversionRequest.options``), and proof.md records
          it
refused   it changes a prediction and is not converted; the message says so
recorded  it changes predict(), not the scores, which are what is served; the card says how
training  it decides what is learned, and does not affect what the trained model predicts
"""

from collections.abc import Mapping

Verdicts = Mapping[str, str]


def _all(verdict: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), verdict)


# XGBClassifier, XGBRegressor, XGBRanker and the random forests: get_params().
XGBOOST_PARAMETERS: Verdicts = {
    **_all("asked", "missing"),
    # early_stopping_rounds leaves best_iteration in the file, which also holds objective, booster,
    # base_score and num_parallel_tree.
    **_all(
        "applied", "early_stopping_rounds objective booster base_score num_parallel_tree device"
    ),
    # The file says which columns hold categories, and for pandas' categories also their names.
    **_all("applied", "enable_categorical feature_types"),
    **_all("refused", "multi_strategy"),  # several values per row
    **_all(
        "training",
        "callbacks colsample_bylevel colsample_bynode colsample_bytree eval_metric feature_weights "
        "gamma grow_policy importance_type interaction_constraints learning_rate max_bin "
        "max_cat_threshold max_cat_to_onehot max_delta_step max_depth max_leaves min_child_weight "
        "monotone_constraints n_estimators n_jobs random_state reg_alpha reg_lambda "
        "sampling_method scale_pos_weight subsample tree_method validate_parameters verbosity",
    ),
}
# predict and predict_proba of those; Booster.predict and DMatrix, which native files use.
XGBOOST_CALL: Verdicts = {
    **_all("asked", "iteration_range missing"),
    # X, data: the rows, by name if the file has names. The others at their defaults.
    **_all(
        "applied", "X data validate_features feature_names nthread silent training strict_shape"
    ),
    **_all("applied", "data_split_mode feature_types enable_categorical"),
    # Another kind of output, or an input beside the row.
    **_all(
        "refused",
        "output_margin base_margin pred_leaf pred_contribs approx_contribs pred_interactions",
    ),
    **_all(
        "training", "label weight group qid label_lower_bound label_upper_bound feature_weights"
    ),
}
# LGBMClassifier, LGBMRegressor, LGBMRanker: get_params().
LIGHTGBM_PARAMETERS: Verdicts = {
    **_all("applied", "boosting_type objective"),
    **_all(
        "training",
        "class_weight colsample_bytree importance_type learning_rate max_depth min_child_samples "
        "min_child_weight min_split_gain n_estimators n_jobs num_leaves random_state reg_alpha "
        "reg_lambda subsample subsample_for_bin subsample_freq",
    ),
}
# Their predict and predict_proba, and Booster.predict. save_model itself saves the best iteration.
LIGHTGBM_CALL: Verdicts = {
    **_all("applied", "X data start_iteration num_iteration validate_features data_has_header"),
    **_all("refused", "raw_score pred_leaf pred_contrib kwargs"),
}
# scikit-learn's own code runs these, in the pipeline's step.
VECTORIZER_PARAMETERS: Verdicts = {
    **_all(
        "applied",
        "alternate_sign analyzer binary dtype lowercase n_features ngram_range norm smooth_idf "
        "stop_words strip_accents sublinear_tf token_pattern use_idf vocabulary",
    ),
    # A user's function; a file name. Bytes are never sent, so their encoding is moot.
    **_all("refused", "preprocessor tokenizer input"),
    **_all("training", "max_df max_features min_df decode_error encoding"),
}
# Category encoders are sampled: each category's encoding is computed (``sklearn_encoders``).
ENCODER_PARAMETERS: Verdicts = {
    **_all(
        "applied",
        "categories drop dtype handle_unknown max_categories min_frequency sparse_output "
        "encoded_missing_value unknown_value target_type",
    ),
    **_all("training", "feature_name_combiner cv random_state shuffle smooth"),
}
IMPUTER_PARAMETERS: Verdicts = {
    **_all("applied", "missing_values strategy fill_value copy add_indicator"),
    **_all("refused", "keep_empty_features"),
}
NORMALIZER_PARAMETERS: Verdicts = _all("applied", "norm copy")
TFIDF_PARAMETERS: Verdicts = _all("applied", "norm smooth_idf sublinear_tf use_idf")
MIN_MAX_PARAMETERS: Verdicts = _all("applied", "feature_range copy clip")
BINS_PARAMETERS: Verdicts = {
    **_all("applied", "n_bins encode strategy dtype"),
    **_all("training", "quantile_method subsample random_state"),
}
BINARIZER_PARAMETERS: Verdicts = _all("applied", "threshold copy")
POLYNOMIAL_PARAMETERS: Verdicts = _all("applied", "degree interaction_only include_bias order")
ISOLATION_PARAMETERS: Verdicts = {
    **_all("applied", "n_estimators max_samples max_features contamination"),
    **_all("training", "bootstrap n_jobs random_state verbose warm_start"),
}
# Only the centres determine the prediction.
CENTRES_PARAMETERS: Verdicts = {
    **_all("applied", "n_clusters"),
    **_all(
        "training",
        "algorithm batch_size bisecting_strategy compute_labels copy_x init init_size max_iter "
        "max_no_improvement n_init random_state reassignment_ratio tol verbose",
    ),
}
NEIGHBORS_PARAMETERS: Verdicts = {
    **_all("applied", "n_neighbors weights p metric metric_params"),
    **_all("training", "algorithm leaf_size n_jobs"),
}
COLUMN_TRANSFORMER_PARAMETERS: Verdicts = {
    **_all("applied", "transformers remainder sparse_threshold transformer_weights"),
    **_all("training", "n_jobs verbose verbose_feature_names_out"),
}
FUNCTION_PARAMETERS: Verdicts = {
    **_all("applied", "func inverse_func validate accept_sparse"),
    **_all("refused", "kw_args inv_kw_args"),
    **_all("training", "check_inverse feature_names_out"),
}
# FixedThresholdClassifier and TunedThresholdClassifierCV, whose predict_proba is the estimator's.
THRESHOLD_PARAMETERS: Verdicts = {
    **_all("applied", "estimator"),
    **_all("recorded", "threshold pos_label response_method"),
    **_all("training", "cv n_jobs random_state refit scoring store_cv_results thresholds"),
}
