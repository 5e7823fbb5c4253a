// Package detect finds abuse in the log of events as it happens: a certificate that is used
// in two places, a secret that is tried on many devices, a revoked device that connects
// again. [Watch] reads the sealed log and passes its findings to a function, which decides
// what to do about them.
//
// The detectors are a state machine over events, without a clock and a database: the same
// events lead to the same findings. [Rules] returns the catalog of rules with their
// descriptions, from which docs/detect.md is generated. All memory is bounded; at a bound,
// what was seen least recently is dropped.
package detect
