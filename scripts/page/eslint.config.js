import js from "@eslint/js";
import globals from "globals";

export default [
  { ignores: ["**/vendor/*"] },
  {
    ...js.configs.recommended,
    files: ["absorb_pl/reports/page/assets/*.js"],
    languageOptions: { ecmaVersion: 2024, sourceType: "module", globals: globals.browser },
    rules: {
      ...js.configs.recommended.rules,
      eqeqeq: "error",
      "no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_", destructuredArrayIgnorePattern: "^_" }],
      "no-var": "error",
      "prefer-const": ["error", { destructuring: "all" }],
      "max-lines": ["error", 260],
      "no-restricted-properties": ["error", { property: "innerHTML", message: "Text from tables must stay text." }],
    },
  },
];
