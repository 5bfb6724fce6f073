"""JWT-SVIDs and WIT-SVIDs: signed sentences about a workload, judged strictly."""
