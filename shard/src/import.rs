//! Rows from CSV and Parquet files.
