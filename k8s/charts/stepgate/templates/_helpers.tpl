{{- define "stepgate.name" -}}
{{- if contains "stepgate" .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{ else }}{{ printf "%s-stepgate" .Release.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "stepgate.selector" -}}
app.kubernetes.io/name: stepgate
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "stepgate.labels" -}}
{{ include "stepgate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "stepgate.policies" -}}
{{- if .Values.policies }}
{{- toYaml .Values.policies }}
{{- else if not (or .Values.config.bundles .Values.config.discovery) -}}
policy.rego: |
{{ .Files.Get "example.rego" | indent 2 }}
{{- end }}
{{- end }}

{{- define "stepgate.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "stepgate.account" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "stepgate.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "stepgate.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}
