package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"

	"github.com/cornjacket/platform-services/internal/config"
)

// tokenPrefix lets people, and scanners for secrets, tell what a token is.
const tokenPrefix = "cornjacket_"

// printToken makes a bearer token and prints it with its entry for API_TOKENS. It is kept nowhere.
func printToken(settings config.Token, out io.Writer) error {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails (crypto/rand)
	token := tokenPrefix + base64.RawURLEncoding.EncodeToString(secret)
	entry := config.APIToken{Name: settings.Name, Scopes: settings.Scopes, Hash: sha256.Sum256([]byte(token))}
	if settings.JSON {
		return json.NewEncoder(out).Encode(struct {
			Token string `json:"token"`
			Entry string `json:"entry"`
		}{token, entry.String()})
	}
	_, err := fmt.Fprintf(out, "Token, for the client; it is shown only now:\n  %s\nEntry, for API_TOKENS or API_TOKENS_FILE:\n  %s\n", token, entry)
	return err
}
