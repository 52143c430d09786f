//! Library facade, the pipeline, and the command line of moec.
