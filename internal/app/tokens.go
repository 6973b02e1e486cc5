package app

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cornjacket/platform-services/api"
	"github.com/cornjacket/platform-services/internal/config"
)

// tokens are the API tokens of the settings and of their file, which is read again when it changes. A file that can't be
// used then is logged, and the tokens stay what they were.
type tokens struct {
	cfg config.Doors
	log *slog.Logger

	mu       sync.Mutex
	modified time.Time // of the file when it was last read, or could not be
	size     int64
	valid    []api.Token
}

func openTokens(cfg config.Doors, log *slog.Logger) (*tokens, error) {
	t := &tokens{cfg: cfg, log: log}
	t.changed()
	valid, err := allTokens(cfg)
	t.valid = valid
	return t, err
}

// current returns the tokens that are accepted now.
func (t *tokens) current() []api.Token {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cfg.APITokensFile == "" || !t.changed() {
		return t.valid
	}
	valid, err := allTokens(t.cfg)
	if err != nil {
		t.log.Error("changed tokens can't be used, those from before stay", "error", err)
		return t.valid
	}
	t.valid = valid
	t.log.Info("tokens were read again", "file", t.cfg.APITokensFile, "tokens", len(valid))
	return valid
}

// changed reports whether the file is another one than at the last call.
func (t *tokens) changed() bool {
	var modified time.Time
	var size int64
	if info, err := os.Stat(t.cfg.APITokensFile); err == nil {
		modified, size = info.ModTime(), info.Size()
	}
	if modified.Equal(t.modified) && size == t.size {
		return false
	}
	t.modified, t.size = modified, size
	return true
}

// allTokens returns the tokens of the settings and of their file.
func allTokens(cfg config.Doors) ([]api.Token, error) {
	list := cfg.APITokens
	if cfg.APITokensFile != "" {
		text, err := os.ReadFile(cfg.APITokensFile)
		if err != nil {
			return nil, fmt.Errorf("API_TOKENS_FILE: read tokens: %w", err)
		}
		more, err := config.ParseTokensFile(string(text))
		if err == nil {
			list = append(list[:len(list):len(list)], more...)
			err = config.CheckTokens(list)
		}
		if err != nil {
			return nil, fmt.Errorf("API_TOKENS_FILE: %s: %w", cfg.APITokensFile, err)
		}
	}
	tokens := make([]api.Token, len(list))
	for i, t := range list {
		tokens[i] = api.Token{Name: t.Name, Hash: t.Hash}
		for _, scope := range t.Scopes {
			tokens[i].Scopes = append(tokens[i].Scopes, api.Scope(scope))
		}
	}
	return tokens, nil
}
