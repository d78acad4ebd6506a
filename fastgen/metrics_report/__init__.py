"""What `fastgen fid`, `fastgen score` and `fastgen trilemma` do."""
