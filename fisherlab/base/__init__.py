"""What stands below everything: processes, precision, files, progress. torch and files, and no Fisher."""
