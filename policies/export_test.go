package policies

const (
	MaxDecisions = maxDecisions
	ThinFor      = thinFor
	MaxPerClient = maxPerClient
)
