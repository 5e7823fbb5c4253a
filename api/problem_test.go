package api_test

import (
	"errors"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
)

var codeConstant = regexp.MustCompile(`(?m)^\t\w+ +Code = "(\w+)"`)

func TestEveryCodeHasAStatus(t *testing.T) {
	text, err := os.ReadFile("../error.go")
	if err != nil {
		t.Fatal(err)
	}
	codes := codeConstant.FindAllStringSubmatch(string(text), -1)
	if len(codes) < 25 {
		t.Fatalf("found %d codes in error.go: the test reads it wrongly", len(codes))
	}
	for _, m := range codes {
		c := countersign.Code(m[1])
		if p := api.ProblemOf("r1", countersign.Errorf(c, "no")); api.StatusOf(c) == 0 || p.Status != api.StatusOf(c) || p.Title == "" || p.Code != string(c) {
			t.Errorf("code %s: got %+v, want a status", c, p)
		}
	}
	if p := api.ProblemOf("r1", errors.New("hunter2")); p.Status != http.StatusInternalServerError || strings.Contains(p.Detail, "hunter2") {
		t.Errorf("another error: got %+v, want 500 without the text", p)
	}
}
