package command

import (
	"fmt"
	"slices"

	"github.com/countersign-iot/countersign"
)

// nextSteps are the commands by which an operator lets a device in, by what the
// fleet accepts, the simplest first. %s is the fleet.
var nextSteps = []struct {
	method countersign.Method
	text   string
}{
	{countersign.MethodToken, "countersign enroll token --fleet %s"},
	{countersign.MethodClaim, "countersign enroll claim --fleet %s --devices 'PATTERN' --out DIR"},
	{countersign.MethodThumbprint, "countersign enroll thumbprint --fleet %s --device ID --cert FILE"},
	{countersign.MethodKey, "countersign enroll key --fleet %s --device ID"},
	{countersign.MethodGroup, "countersign enroll group --fleet %s"},
	{countersign.MethodTPM, "countersign enroll tpm --fleet %s --device ID --ek FILE"},
}

// enrollStep is how a device comes into a fleet that accepts the methods.
func enrollStep(fleet string, methods []string) string {
	for _, s := range nextSteps {
		if slices.Contains(methods, string(s.method)) {
			return fmt.Sprintf(s.text, fleet)
		}
	}
	return "countersign ca register --help" // a maker's certificate is all that it accepts
}
